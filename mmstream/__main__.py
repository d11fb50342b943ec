"""`mmstream` and `python -m mmstream`."""


def main() -> None:
    from mmstream.cli import main as run

    run()


if __name__ == "__main__":
    main()
