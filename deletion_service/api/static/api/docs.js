"use strict";
document.addEventListener("DOMContentLoaded", () => {
  const place = document.getElementById("description");
  window.SwaggerUIBundle({ domNode: place, url: place.dataset.description, deepLinking: true, validatorUrl: null });
});
