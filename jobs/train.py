"""`mmstream train` for `ray job submit`: python jobs/train.py RECIPE --out RUN [key=value …]"""

import sys

from mmstream.cli import main

if __name__ == "__main__":
    main(["train", *sys.argv[1:]])
