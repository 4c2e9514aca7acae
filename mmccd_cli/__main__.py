"""`python -m mmccd_cli`, the same as `mmccd`."""

from mmccd_cli.cli.app import main

if __name__ == "__main__":
    main()
