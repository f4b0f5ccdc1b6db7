"""AOT estimates of a training step for hardware you don't have: memory, FLOPs, traffic, time and dollars."""
