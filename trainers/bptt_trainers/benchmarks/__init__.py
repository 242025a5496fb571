"""What an update, a step and a start cost, beside peers and beside the limit of the machine."""
