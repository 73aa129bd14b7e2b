"""The tasks, one small file each; `electra_fast.finetuning.task.TASKS` names them."""
