"""Progress on a terminal, in processes that others are forked from."""

from tqdm import tqdm


class Progress(tqdm):
    """tqdm without its thread: a process that is forked while that holds tqdm's lock waits for the lock for ever, and
    keeps the one of all processes, for which then everybody waits."""

    monitor_interval = 0
