def film_of(
    rows: dict[str, Tensor],
    words: list[str] | None = None,
    milliseconds: int = 80,
    zoom: int = 4,
    greys: int = 24,
) -> bytes:
    """An endless animated PNG of some films, name -> (n, H, W) in [0, 1], one above the other; all
    frames share one scale of greys, or a still picture would flicker. `words`: n texts, one per
    frame, at the top right."""
    frames = torch.cat([torch.as_tensor(film) for film in rows.values()], 1).cpu()  # (n, R·H, W)
    high, wide = frames.shape[1] * zoom, round(frames.shape[2] * zoom * PIXEL_SHAPE)
    font, pictures = ImageFont.load_default(4 * zoom), []
    for frame, word in zip(frames, words or [""] * len(frames)):
        levels = (frame * (greys - 1)).round().byte().numpy()
        pictures.append(picture := Image.fromarray(levels).resize((wide, high), 0))
        pen = ImageDraw.Draw(picture)
        for k, name in enumerate(rows):
            pen.text((zoom, k * high / len(rows)), name, 0, font)
        pen.text((wide - zoom, 0), word, 0, font, "ra")
        picture.putpalette([round(255 * k / (greys - 1)) for k in range(greys) for _ in range(3)])
    pictures[0].save(
        file := io.BytesIO(),
        "PNG",
        save_all=True,
        append_images=pictures[1:],
        duration=milliseconds,
        loop=0,
        optimize=True,
    )
    return file.getvalue()
