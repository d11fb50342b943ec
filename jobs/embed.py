"""`mmstream embed` for `ray job submit`: python jobs/embed.py SRC… DEST --model SPEC"""

import sys

from mmstream.cli import main

if __name__ == "__main__":
    main(["embed", *sys.argv[1:]])
