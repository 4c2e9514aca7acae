"""`mmccd schema`: what a record holds, as JSON Schema."""

from __future__ import annotations

import json

from mmccd_cli.cli.command import command
from mmccd_cli.cli.console import Console


@command
def schema(*, console: Console) -> None:
    """Print the JSON Schema of a record.

    A record is what map.json holds, and each line that --json prints. In a sidecar of BIDS it
    stands under the key mmccd.

    Examples:
      mmccd schema > record.schema.json
    """
    from mmccd_cli.outputs.schema import record_schema

    console.result(json.dumps(record_schema(), indent=2))
