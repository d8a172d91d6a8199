"""Tables, figures, verdicts and pages, made from rows alone. Every figure has `frame()` beside `plot()`.

pandas, altair and vl-convert (the extra `report`) are imported in this room, and nothing below it imports the room.
"""
