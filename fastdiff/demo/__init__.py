"""The page of `fastdiff demo`: what it shows is computed without the library of the page, which `page` imports."""
