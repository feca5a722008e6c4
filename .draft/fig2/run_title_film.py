# @title The film: a coin pushes C off balance, in reality and in a dream
from IPython.display import Image as Picture
from IPython.display import display

title_film = asset("quick_run/film.png")  # of the run whose outputs you see
if title_film:
    display(Picture(data=title_film.read_bytes(), format="png", width=384))
