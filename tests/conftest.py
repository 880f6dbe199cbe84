"""In CI the property tests draw the same examples every time; elsewhere new ones each run."""

import os

from hypothesis import settings

settings.register_profile("ci", derandomize=True)
if os.environ.get("CI"):
    settings.load_profile("ci")
