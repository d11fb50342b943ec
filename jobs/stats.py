"""`mmstream stats` for `ray job submit`: python jobs/stats.py SRC… DEST"""

import sys

from mmstream.cli import main

if __name__ == "__main__":
    main(["stats", *sys.argv[1:]])
