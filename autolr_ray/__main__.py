"""``python -m autolr_ray``: the command line where the script ``autolr-ray`` is not on the path."""

import sys

from autolr_ray.cli import main

if __name__ == "__main__":
    sys.exit(main())
