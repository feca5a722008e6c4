import sys
sys.path.insert(0, ".draft")
from nbedit import Book
b = Book()
b.sub("define-profile-name", 'name, fields = ".".join([*branch, leaf]), kind.model_fields', 'name, fields = ".".join([*branch, leaf]).strip("."), kind.model_fields')
b.save()
