//! Variables by place: a child sees its parents', a name set in it hides theirs.

use std::cell::RefCell;
use std::rc::Rc;

use super::value::Value;

pub struct Scope {
    parent: Option<Rc<Scope>>,
    variables: RefCell<Vec<(u32, Value)>>,
}

impl Scope {
    pub fn new(parent: Option<Rc<Scope>>) -> Rc<Scope> {
        Rc::new(Scope { parent, variables: RefCell::default() })
    }

    pub fn get(&self, name: u32) -> Option<Value> {
        let mut scope = self;
        loop {
            if let Some((_, value)) = scope.variables.borrow().iter().find(|(own, _)| *own == name) {
                return Some(value.clone());
            }
            scope = scope.parent.as_deref()?;
        }
    }

    pub fn set(&self, name: u32, value: Value) {
        let mut variables = self.variables.borrow_mut();
        match variables.iter_mut().find(|(own, _)| *own == name) {
            Some((_, old)) => *old = value,
            None => variables.push((name, value)),
        }
    }

    /// A macro keeps the scope that keeps the macro: this breaks the circle.
    pub fn clear(&self) {
        let emptied = std::mem::take(&mut *self.variables.borrow_mut());
        drop(emptied);
    }
}
