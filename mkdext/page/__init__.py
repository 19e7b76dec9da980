"""Results as one HTML file, with pictures to compare, tables to sort and curves to read off."""

from mkdext.page.document import Curves, Page, Sheet, write_page
from mkdext.page.gallery import Gallery

__all__ = ["Curves", "Gallery", "Page", "Sheet", "write_page"]
