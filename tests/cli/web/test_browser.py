"""The page in a real browser: keyboard, Stop, edit, a phone, the dark, and nothing asked of another host."""

import pytest

from tests.cli.web.chromium import BROWSER, DRIVER, ENTER, ESCAPE, TAB, chromium
