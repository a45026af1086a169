/* Enhancements of the task pages of the admin. Every page works without them. */
"use strict";

(() => {
  /** Show a button that copies the text of another element. */
  function offerCopy(button) {
    const source = document.getElementById(button.dataset.copy);
    if (!source || !navigator.clipboard) {
      return;
    }
    const label = button.textContent;
    button.hidden = false;
    button.addEventListener("click", async () => {
      await navigator.clipboard.writeText(source.textContent);
      button.textContent = button.dataset.copied;
      setTimeout(() => { button.textContent = label; }, 2000);
    });
  }

  /** Replace the content of an element with a newer version of it, every few seconds while the page is visible. */
  function keepCurrent(element) {
    const seconds = Number(element.dataset.refresh);
    const toggle = document.getElementById(element.dataset.refreshToggle);
    const state = document.getElementById(element.dataset.refreshState);
    let asking = false;

    async function refresh() {
      if (asking || document.hidden || (toggle && !toggle.checked) || element.contains(document.activeElement)) {
        return;
      }
      asking = true;
      try {
        const answer = await fetch(element.dataset.address, { headers: { "X-Requested-With": "XMLHttpRequest" } });
        if (!answer.ok || answer.redirected) {
          throw new Error(String(answer.status));
        }
        const open = Array.from(element.querySelectorAll("details[open]"), (details) => details.id);
        element.innerHTML = await answer.text();
        open.forEach((id) => document.getElementById(id)?.setAttribute("open", ""));
        if (state) { state.textContent = ""; }
      } catch {
        if (state) { state.textContent = state.dataset.failed; }
      } finally {
        asking = false;
      }
    }

    if (toggle) { toggle.closest("[hidden]")?.removeAttribute("hidden"); }
    setInterval(refresh, seconds * 1000);
  }

  document.addEventListener("DOMContentLoaded", () => {
    document.querySelectorAll("button[data-copy]").forEach(offerCopy);
    document.querySelectorAll("[data-refresh]").forEach(keepCurrent);
  });
})();
