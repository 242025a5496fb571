"""The machine and the program around: processes, cores, code of the user's."""
