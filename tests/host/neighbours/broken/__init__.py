"""A pack whose requirement is missing: the host reports it and goes on."""

import a_package_that_nobody_has  # noqa: F401
