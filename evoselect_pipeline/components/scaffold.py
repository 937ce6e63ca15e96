"""What `dg scaffold defs evoselect_pipeline.components.EvolutionLine NAME` writes."""

import dagster as dg

from evoselect_pipeline.stores.home import line_name

TEMPLATE = """\
# One evolution line. Every key has a default; `dg check yaml` knows them all.
type: evoselect_pipeline.components.EvolutionLine
attributes:
  line: {line}
  # The playground stands in until you have files of your own, one JSON object a line with `prompt`
  # and `completion`, or with `messages`:
  # task: {{kind: files, targets: targets.jsonl, validation: validation.jsonl, test: test.jsonl}}
  # generator: {{kind: files, pattern: "candidates_{{round}}.jsonl"}}
  # model: {{name: Qwen/Qwen2.5-0.5B-Instruct, revision: COMMIT}}
  task: {{kind: playground, name: stories}}
  generator: {{kind: playground, world: weak}}
  schedule: {{cron: "0 2 * * *", timezone: UTC}}
  chain: {{max_rounds: 10, patience: 3}}
"""


class LineScaffolder(dg.Scaffolder):
    """Write a line's `defs.yaml` that loads as it is; the folder's name is the line's."""

    def scaffold(self, request: dg.ScaffoldRequest) -> None:
        """Write the file; refuse a name that cannot name folders and assets alike."""
        line = line_name(request.target_path.name)
        request.target_path.mkdir(parents=True, exist_ok=True)
        text = TEMPLATE.format(line=line)
        (request.target_path / "defs.yaml").write_text(text, encoding="utf-8")
