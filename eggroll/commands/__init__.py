"""The commands of `eggroll`, one a file: what each is asked, and how it answers. `eggroll.cli` puts them together."""
