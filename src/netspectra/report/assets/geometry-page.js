// The page of one weight's geometry.

const seen = JSON.parse(document.getElementById("data").textContent);
const view = geometryView(seen);
document.title = `${shortened(visible(seen.name), 80)} · netspectra`;
document.getElementById("title").append(nameNode(seen.name, 160));
document.getElementById("lead").textContent = geometryLead(seen);
document.getElementById("geometry-view").append(view.node);
document.getElementById("notes").append(...seen.notes.map((note) => el("li", {}, visible(note))));
document.getElementById("foot").textContent = `Made by netspectra ${visible(seen.netspectra)}. This page is complete in itself and loads nothing.`;
theme.start();
theme.listen(view.redraw);
view.redraw();
document.documentElement.dataset.ready = "yes";
