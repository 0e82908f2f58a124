"""`spotd report`: one HTML file about a run, that needs nothing but a browser.

`gather` looks, `charts` and `page` only draw. Everything that is shown came from a trainer, a
bucket or an API, so everything is escaped, and the page forbids itself scripts and the network.
"""
