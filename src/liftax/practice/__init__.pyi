from .notebook import check as check
