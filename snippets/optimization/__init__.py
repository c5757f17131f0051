"""Part 2: decide from measurements, climb to the limit of the hardware, and run it for real."""
