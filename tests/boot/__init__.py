"""The appliance on a real systemd: booted in a container of its own, one per test module."""
