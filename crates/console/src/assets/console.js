// What pages do beyond HTML: parts that the server sends anew, new records, copying a command, the slider.
// Without this script every page works, and shows what was there when it was loaded.
"use strict";

const state = document.getElementById("live-state");

function show(text, isLost) {
  if (!state) return;
  if (state.textContent !== text) state.textContent = text;
  state.classList.toggle("lost", isLost);
}

// Follows a source of events. It is opened again when the browser gives up, after waits that double up to half a
// minute. A page that nobody sees takes nothing.
function follow(url, events) {
  let source = null;
  let wait = 1000;
  let timer = null;
  let isOver = false;

  function close() {
    clearTimeout(timer);
    if (source) source.close();
    source = null;
  }

  function open() {
    close();
    source = new EventSource(url());
    source.onopen = () => {
      wait = 1000;
      show("live", false);
    };
    for (const [name, handle] of Object.entries(events)) {
      source.addEventListener(name, (event) => {
        show("live", false);
        handle(event);
      });
    }
    source.addEventListener("failed", (event) => show(event.data, true));
    source.addEventListener("signed-out", () => {
      close();
      isOver = true;
      show("signed out: load the page again", true);
    });
    source.onerror = () => {
      if (source && source.readyState !== EventSource.CLOSED) {
        show("connecting again", true);
        return;
      }
      // A status that is no success: signed out, too many live pages, or the server is starting.
      source = null;
      show("not live: load the page again, or wait", true);
      timer = setTimeout(open, wait);
      wait = Math.min(wait * 2, 30000);
    };
  }

  document.addEventListener("visibilitychange", () => {
    if (isOver) return;
    if (document.hidden) {
      close();
      show("paused", false);
    } else if (!source) {
      open();
    }
  });
  open();
}

const FOCUSABLE = "a[href], button, summary, input, select, [tabindex]";

// What is focused stays so when its part comes anew: the same link or command, else the same place in the order.
function keepFocus(part, replace) {
  const of = () => [...part.querySelectorAll(FOCUSABLE)];
  const focused = document.activeElement;
  if (!part.contains(focused)) {
    replace();
    return;
  }
  const at = of().indexOf(focused);
  const name = (it) => it.getAttribute("href") || it.dataset.copy || it.textContent;
  const wanted = name(focused);
  replace();
  const next = of();
  const again = next[at] && name(next[at]) === wanted ? next[at] : next.find((it) => name(it) === wanted) || next[at];
  if (again) again.focus({ preventScroll: true });
}

for (const part of document.querySelectorAll("[data-live]")) {
  follow(() => part.dataset.live, {
    part(event) {
      // What somebody has selected, to copy it, stays; the next change comes after that.
      const selection = document.getSelection();
      if (selection && !selection.isCollapsed && part.contains(selection.anchorNode)) {
        show("held while text is selected", false);
        return;
      }
      const open = [...part.querySelectorAll("details")].map((it) => it.open);
      const scrolled = [...part.querySelectorAll(".scroll")].map((it) => it.scrollLeft);
      keepFocus(part, () => {
        part.innerHTML = event.data;
        [...part.querySelectorAll("details")].forEach((it, at) => { it.open = open[at] || false; });
        [...part.querySelectorAll(".scroll")].forEach((it, at) => { it.scrollLeft = scrolled[at] || 0; });
      });
    },
  });
}

const MAX_ROWS = 500;
for (const rows of document.querySelectorAll("[data-live-rows]")) {
  const pause = document.querySelector("[data-pause]");
  let waiting = [];
  let last = null;
  const add = (html) => {
    rows.insertAdjacentHTML("beforeend", html);
    while (rows.rows.length > MAX_ROWS) rows.rows[0].remove();
  };
  const isPaused = () => pause && pause.getAttribute("aria-pressed") === "true";
  const url = () => {
    const source = new URL(rows.dataset.liveRows, location.href);
    if (last) source.searchParams.set("from", last);
    return source.href;
  };
  follow(url, {
    rows(event) {
      last = event.lastEventId || last;
      if (isPaused()) {
        waiting.push(event.data);
        waiting = waiting.slice(-20);
      } else {
        add(event.data);
      }
    },
  });
  if (pause) {
    pause.addEventListener("click", () => {
      const paused = !isPaused();
      pause.setAttribute("aria-pressed", String(paused));
      pause.textContent = paused ? "Go on" : "Pause the live tail";
      if (!paused) {
        waiting.forEach(add);
        waiting = [];
      }
    });
  }
}

document.addEventListener("click", async (event) => {
  const button = event.target.closest("[data-copy]");
  if (!button) return;
  try {
    await navigator.clipboard.writeText(button.dataset.copy);
    button.textContent = "Copied";
  } catch {
    // Without a secure connection, a browser lets no script copy: select it instead.
    const range = document.createRange();
    range.selectNodeContents(button.previousElementSibling);
    const selection = document.getSelection();
    selection.removeAllRanges();
    selection.addRange(range);
    button.textContent = "Selected";
  }
  setTimeout(() => { button.textContent = "Copy"; }, 2000);
});

for (const slider of document.querySelectorAll("[data-slider]")) {
  const field = document.getElementById(slider.dataset.slider);
  slider.addEventListener("input", () => { field.value = slider.value; });
  slider.addEventListener("change", () => slider.form.requestSubmit());
  field.addEventListener("input", () => { slider.value = field.value; });
}

// How records are shown changes at once.
for (const choice of document.querySelectorAll("form.find select")) {
  choice.addEventListener("change", () => choice.form.requestSubmit());
}
