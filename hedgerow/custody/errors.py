"""What goes wrong with backups and audits."""

from hedgerow.core.errors import HedgerowError


class CustodyError(HedgerowError):
    """A folder or a backup cannot be used as it is; the text says which, why, and what to do."""
