"""The main job: run a study on Ray and write its report.

    python experiments/compare.py --study experiments/studies/quick.yaml --results results

The same file runs on a laptop and under ``ray submit``; the package must be installed on every node.
"""

import sys

from autolr_ray.cli import main

if __name__ == "__main__":
    sys.exit(main(["compare", *sys.argv[1:]]))
