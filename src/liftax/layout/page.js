// Details on hover and focus, the filter, and moving through the rows by keyboard. The page says
// everything important without this script.
(() => {
  const root = document.querySelector(".lx");
  const panel = root.querySelector(".inspect");
  const body = panel.querySelector(".body");
  const filter = root.querySelector("input[type=search]");
  const count = root.querySelector(".count");
  const rows = [...root.querySelectorAll(".row")];
  const leaves = rows.filter((row) => row.localName === "li");
  let shown = null;

  function show(target) {
    if (!target || target === shown) return;
    if (shown) shown.classList.remove("on");
    shown = target;
    shown.classList.add("on");
    const template = document.getElementById(target.dataset.k);
    const heading = document.createElement("h3");
    heading.textContent = target.dataset.name;
    body.replaceChildren(heading, template.content.cloneNode(true));
    panel.scrollTop = 0;
    root.dataset.hot = target.dataset.hot || "";
  }
  function hide() {
    panel.classList.remove("show");
    root.dataset.hot = "";
  }
  const found = (event) => event.target.closest("[data-k]");
  root.addEventListener("pointerover", (event) => {
    if (event.pointerType === "mouse") show(found(event));
  });
  root.addEventListener("pointerleave", () => { root.dataset.hot = ""; });
  root.addEventListener("focusin", (event) => {
    show(found(event));
    if (found(event) && event.target.matches(":focus-visible")) panel.classList.add("show");
  });
  root.addEventListener("click", (event) => {
    if (event.target.closest(".close")) return hide();
    const target = found(event);
    if (target) { show(target); panel.classList.add("show"); }
  });

  const seen = (row) => row.checkVisibility
    ? row.checkVisibility() : row.offsetParent !== null;
  function rove(row) {
    for (const other of rows) if (other.tabIndex === 0 && other !== row) other.tabIndex = -1;
    row.tabIndex = 0;
  }
  for (const row of rows) row.tabIndex = -1;
  if (rows.length) rows[0].tabIndex = 0;
  root.addEventListener("keydown", (event) => {
    if (event.key === "Escape") return hide();
    if (event.key === "/" && event.target !== filter) {
      event.preventDefault();
      return filter.focus();
    }
    const row = event.target.closest(".row");
    if (!row) return;
    const visible = rows.filter(seen);
    const at = visible.indexOf(row);
    const to = { ArrowDown: at + 1, ArrowUp: at - 1, Home: 0, End: visible.length - 1 }[event.key];
    if (to === undefined || !visible[to]) return;
    event.preventDefault();
    rove(visible[to]);
    visible[to].focus();
  });
  root.addEventListener("focusin", (event) => {
    const row = event.target.closest(".row");
    if (row) rove(row);
  });

  function sift() {
    const words = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
    let left = 0;
    for (const row of leaves) {
      const said = `${row.dataset.name} ${row.dataset.find}`.toLowerCase();
      const hit = words.every((word) => said.includes(word));
      row.classList.toggle("hidden", !hit);
      if (hit) left += 1;
    }
    for (const fold of root.querySelectorAll("details.fold")) {
      const any = fold.querySelector("li.row:not(.hidden)") !== null;
      fold.classList.toggle("hidden", !any);
      if (words.length) fold.open = any;
      else fold.open = false;
    }
    for (const group of root.querySelectorAll(".group")) {
      group.classList.toggle("hidden", !group.querySelector("li.row:not(.hidden)"));
    }
    const visible = rows.find(seen);
    if (visible) rove(visible);
    count.textContent = words.length ? `${left} of ${leaves.length}` : "";
  }
  filter.addEventListener("input", sift);
  root.querySelector(".tools").classList.remove("hidden");

  function reveal() {
    const row = location.hash && document.getElementById(location.hash.slice(1));
    if (!row || !row.matches(".row")) return;
    const fold = row.closest("details.fold");
    if (fold) fold.open = true;
    row.scrollIntoView({ block: "center" });
    row.focus({ preventScroll: true });
  }
  addEventListener("hashchange", reveal);
  reveal();
})();
