"""What a training step takes on a machine that isn't here: memory, operations, traffic, time and dollars."""
