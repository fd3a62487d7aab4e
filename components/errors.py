"""The one kind of error that Esteira shows to a person."""


class EsteiraError(Exception):
    """Something that the user can mend; the message is all that is shown.

    The message is made of finished sentences: what is wrong, then what to do. It never holds a secret. The
    command line and ``__main__.py`` print it without a traceback and exit with status 1.
    """
