"""Fine-tuning: tasks, their data and metrics, the run, evaluation and prediction."""

from electra_fast.finetuning.task import TASKS, Task, load_task, task_class

__all__ = ["TASKS", "Task", "load_task", "task_class"]
