"""The program `mmccd`: commands and options, and the only place that prints.

A command reads its options, calls one function of a room below, and shows what comes back. In the
order in which a call passes through them:

- `app`: the program, its commands and its signals;
- `command`: a function as a command, its dataclasses as options, its exceptions as exit codes;
- `help`: what `--help` shows;
- `options`: the groups of options that several commands share, and how their values are read;
- `lists`: lists of subjects from a file or a pipe; `start`: what is imported while they are read;
- `console`: messages, progress, and results;
- `outcomes`: a cohort as it is shown, subject by subject;
- `segment`, `bids`, `threshold`, `compare`, `group`, `demo`, `weights`: commands for results;
- `doctor`: what works on this computer; `schema`: what a record holds;
- `train`, `evaluate`, `comparison`, `benchmark`: commands for those that make and judge weights.
"""
