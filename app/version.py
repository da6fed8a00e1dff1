"""The version of this release, as its package states it."""

from importlib.metadata import version

VERSION = version("crew-capture")
