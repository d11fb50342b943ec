"""`mmstream index` for `ray job submit`: python jobs/index.py build EMB INDEX"""

import sys

from mmstream.cli import main

if __name__ == "__main__":
    main(["index", *sys.argv[1:]])
