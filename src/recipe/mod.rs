//! Recipes: which tensor gets which type, as data; and the plan that a recipe gives for a model.
