"""What a step is taken with: learning rate, stages, parameter groups, optimizers, the guard."""
