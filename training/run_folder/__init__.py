"""The folder of a run: its checkpoints, figures, report and cards."""
