// Escape stops the answer that is under way, wherever the cursor is.
document.addEventListener("keydown", (event) => {
  if (event.key !== "Escape") return;
  const stop = document.querySelector("#entry .stop-button");
  if (stop) stop.click();
});
