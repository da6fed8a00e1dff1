"""The command `crew-capture`.

The service's packages are named `app` and `storage`. The import of this module makes Python find
them before others of these names, such as those in a folder on `PYTHONPATH`. A process that
executes the service's code therefore imports this module first.
"""

import sys
from pathlib import Path
from typing import Final

_INSTALLED: Final = Path(__file__).with_name("service")
# The folder of the two packages: in the wheel, or the repository.
FOLDER: Final = str(_INSTALLED if _INSTALLED.is_dir() else Path(__file__).parents[1])

# Processes that this one starts inherit the path.
if FOLDER not in sys.path[:1]:
    sys.path.insert(0, FOLDER)


def main() -> None:
    """Run the command line."""
    from app.cli import main as run  # noqa: PLC0415 - found by the path above

    run()
