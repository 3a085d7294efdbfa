"""How much room something takes, as people say it."""


def space(size: float) -> str:
    """`8.19 KB`, `3.5 MB`: three digits, in the units of a disk's maker."""
    for unit in ("bytes", "KB", "MB", "GB"):
        if size < 999.5:  # which would be shown as 1e+03
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} TB" if size < 999.5 else f"{size:,.0f} TB"
