{% test holds(model, condition, column_name=none) %}
-- rows for which the condition is not true; unknown (null) counts as a violation
select *
from {{ model }}
where ({{ condition }}) is not true
{% endtest %}
