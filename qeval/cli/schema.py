"""`qeval schema`: the JSON Schema of a spec, for editors."""

from __future__ import annotations

from qeval.cli.shared import command
from qeval.core.console import echo


@command()
def schema() -> None:
    """Print the JSON Schema of a spec file: editors complete and check with it as you type.

    Put this above a spec: # yaml-language-server: $schema=qeval.schema.json

    \b
    Examples:
      qeval schema > qeval.schema.json
    """
    import json

    from qeval.plan.schema import spec_schema

    echo(json.dumps(spec_schema(), indent=1, ensure_ascii=False))
