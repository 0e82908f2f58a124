"""Text that anybody may have chosen, on its way into a page."""

from __future__ import annotations

import html

from spotd.core.words import readable


def escape(text: str) -> str:
    """Returns text for a page or an attribute: neither markup nor anything that hides itself."""
    return html.escape(readable(text), quote=True)
