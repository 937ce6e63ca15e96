"""One round, stage by stage, without an orchestrator: each stage reads artifacts and makes one."""
