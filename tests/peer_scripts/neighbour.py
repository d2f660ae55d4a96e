"""A module beside a script."""


class Neighbour:
    pass
