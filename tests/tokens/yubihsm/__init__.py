"""A YubiHSM 2 in software, for tests: Yubico's PKCS#11 module is real, the device behind it is
this. Written from the published command reference; shares no code with what it tests."""
