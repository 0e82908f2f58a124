"""An EC2 of one's own: a real systemd in systemd-nspawn, with what EC2 has around an instance.

`image` makes the root of the machine, `disk` what it loses when the power goes, `cloud` the
network with IMDS, DHCP, DNS and S3, `instance` the machine that is started, stopped and cut off.
"""
