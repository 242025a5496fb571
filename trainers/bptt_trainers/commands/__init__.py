"""The commands of `bptt`, a file each; `bptt_trainers.cli` says which there are and how they end."""
